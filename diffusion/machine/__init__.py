"""The memory and the devices that there are."""
