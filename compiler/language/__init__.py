"""The language: YAML with positions -> `Spec`, its grammar, schema and reference."""
