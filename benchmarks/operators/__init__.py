"""The B0-aware normal operator beside everybody else's: time, memory and error of the same problem.

python -m benchmarks.operators           the table
python -m benchmarks.operators.scaling   how the cost grows, beside what a model predicts
"""
