"""The door: attacks, models, data, commands and record kinds are registered here, ours and yours alike."""
