"""What a notebook shows of a result: tables and drawings as HTML and SVG, without scripts, on light and dark ground.

Read next: `html.py` (tables), `svg.py` (drawings).
"""
