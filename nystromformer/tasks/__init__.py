"""Fine-tuning on GLUE, IMDB and data of one's own: `finetune` trains, `evaluate` looks at a file.

The way of an example through this package:

    definitions   what a task is: its columns, labels, metrics and GLUE's file names
    table_files   .csv, .tsv and .jsonl files, row by row, each with its place; delimited: their quoting
    glue, reviews, custom → splits     texts and label ids, train, dev and test
    encoding      token ids, what is cut; description: balance of the classes, lengths
    batches       rows of like length together, a pure function of (seed, step)
    training      one seed of one cell; jobs: all of them, on all devices
    outcome       JSON, pictures and the table; submission: GLUE's zip
"""
