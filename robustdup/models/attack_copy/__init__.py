"""The attack copy: what attacks run on in place of a model, the same function and faster.

Two kinds, from one stack. `prepare` makes the copy that an evaluation attacks: frozen, BatchNorm folded, channels last,
compiled, in a chosen precision. `following` makes the copy that the inner attack of training runs on: it shares the layers
of the model that is trained, and its folded weights are renewed after each step. `fold`, `layout` and `compile` are their
means; `agreement` is why they may be trusted: a copy that answers otherwise than the model is not used.
"""
