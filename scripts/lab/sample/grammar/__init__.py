"""What people say and what it means: wordings, slots and surface noise, as data and small rules."""
