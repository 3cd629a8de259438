"""Pictures of policy calls and plans."""
