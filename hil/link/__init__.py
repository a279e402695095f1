"""Links: one endpoint protocol, several transports."""
