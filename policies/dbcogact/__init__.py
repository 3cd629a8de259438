"""The DB-CogACT family (Dexbotic's CogACT): CLIP, Qwen2 and a diffusion head."""
