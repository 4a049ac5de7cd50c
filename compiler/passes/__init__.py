"""Passes: Model -> Model, one file each. Importing one imports no other, so that compiling a spec stays quick."""
