"""What a program or a notebook calls, and what the command line does: each command is one function here.

`cocot.train`, `cocot.evaluate`, ... are these functions. They take what there is at hand (a model and its tokenizer, or
the place of one; problems as a list, as a file, or as a task makes them), and return objects that a notebook shows.
Read next: `evaluation.py`.
"""
