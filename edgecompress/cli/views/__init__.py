"""How records are shown on a terminal: tables and lines of plain text, without markup from device or model files."""
