"""What every system uses; it knows none of them."""
