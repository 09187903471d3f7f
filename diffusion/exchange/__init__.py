"""Models of this project as files that other programs load, and theirs as models of this project."""
