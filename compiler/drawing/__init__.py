"""Drawing graphs: geometry, what to show, and one writer per format. `compiler.drawing.formats.draw` is the way in."""
