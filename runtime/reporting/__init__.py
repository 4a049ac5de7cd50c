"""The HTML report of a run: what was read, the pieces of the page, and the page's template."""
