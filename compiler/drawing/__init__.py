"""Drawing graphs: geometry, what to show, and one writer per format. `compiler.draw.draw` is the way in."""
