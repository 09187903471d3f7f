"""The plain values that people type, checked before torch is imported."""
