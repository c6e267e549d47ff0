"""Fine-tuning: `finetune` trains, `evaluate` measures on a file. A kind of task is a file in `kinds/`.

task          what a kind answers; the examples, rows and batches that go between
kinds/        sequence: a class or a number for a text; benchmarks: GLUE, its submission, film reviews
row_files     a file row by row, each with its place; of tables, tagged words and questions: table_files,
              tagged_files; questions: kinds/answers
reading       from files to examples, checked and divided
setup         a task's data as token ids, described; a checkpoint as its model
rows          examples as token ids; lists: rows of several texts with a score each
batches       rows of like length together, a pure function of (seed, step)
training      one seed of one cell of the grid; jobs: all of them, shared by all devices and commands
results       JSON and the table; scores, plots; export: the model
"""
