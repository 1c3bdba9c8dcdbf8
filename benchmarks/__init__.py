"""Side by side in one run: this engine and the toolkits that users would pick instead, on networks made here."""
