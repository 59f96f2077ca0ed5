"""What a search found, for people: one self-contained HTML page, and a short text."""
