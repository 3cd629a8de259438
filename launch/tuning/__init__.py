"""What `trimvla tune` is made of: points of a plan, their prices on this device, the search."""
