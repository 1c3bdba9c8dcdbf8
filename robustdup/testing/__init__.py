"""What authors of attacks run: the conformance test and a survey of everything that is installed."""
