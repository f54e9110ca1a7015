"""How the agent is: its state, metrics, and the local page."""
