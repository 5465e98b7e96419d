"""What `plan` is made of: candidates (forms and ranks of a layer), sensitivity (what each costs the loss), offers (both together)."""
