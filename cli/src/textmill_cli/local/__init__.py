"""Everything on one machine: the real servers that come as wheels, the services, and what watches over them."""
