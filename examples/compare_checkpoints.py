"""Compare two checkpoints on the same samples: the paired difference tells more than two intervals that overlap."""

import robustdup

data = robustdup.load_data("builtin:digits", n=60)
results = {
    name: robustdup.evaluate(robustdup.load_model(f"builtin:{name}"), data, eps="0.1", attacks="fast", progress=False)
    for name in ("digits-robust", "digits-standard")
}
for name, result in results.items():
    print(f"{name}: {result}")
difference = robustdup.compare(results["digits-robust"], results["digits-standard"]).robust
print(
    f"robust accuracy, difference: {100 * difference.difference:+.1f} points "
    f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}], p = {difference.p_value:.2g} (McNemar)"
)
