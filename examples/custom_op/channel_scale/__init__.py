"""The op `channel_scale` for graphspec: every channel times a trained number."""
