"""How a scene of Streets is made: canvas (surfaces), fabric and traffic (objects), layout (where), looks (colour)."""
