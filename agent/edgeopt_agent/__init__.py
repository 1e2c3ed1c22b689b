"""What runs on the board: the standard library, plus numpy and one runtime, imported only when a job asks for them.

wire (the contract) → main (entry points) → jobs (detached) → bench, infer, releases → runtimes/*, preprocess, facts
"""

__version__ = "0.1.0"
