"""Lower bounds of robustness: samples for which no adversarial example exists, by proof.

`graph` reads a network as a list of operations, `crown` bounds its logits (interval bounds, CROWN, alpha-CROWN), `checker`
proves the bounds again without torch and with rounding, and only what it accepts counts. `smoothing` certifies in L2 by
votes under noise, for any network, with a stated confidence.
"""
