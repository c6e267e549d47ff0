"""From documents to batches.

    corpora          documents of every source, with weights and limits
      ▼
    blocks           cleaned, duplicates dropped; grouped into blocks, each one later a shard
      │              (a hash of its text sends a document to the training or the validation split)
      ▼
    sentences        ["He arrived late.", "Nobody had waited.", "So he left."]
      ▼
    tokenizer        [[2002, 3369, 2397, 1012], [6343, 2018, 4741, 1012], [2061, 2002, 2187, 1012]]
      ▼
    segmentation     chunks of whole sentences up to max_length - 3 tokens, unmasked
      ▼
    storage          Arrow shards: input_ids [2002 3369 … 1012]  sentence_lengths [4 4 4]
    ═══════════════  on disk, once for each combination of settings (`nystromformer prepare`)
      ▼
    sentence_order   [CLS] so he left . [SEP] he arrived late . nobody had waited . [SEP]   label 1
      ▼              cut at a random sentence boundary, swapped with probability 1/2
    masking          [CLS] so he [MASK] . [SEP] he arrived late . nobody had waited . [SEP]
      ▼
    examples         one collated batch of int64 tensors
      ▼
    loader           the order of the batches, and the processes that draw them ahead

Above the double line a document is touched once, in `data.workers` processes (`prepare`), or on several
machines; `unfinished` keeps what is whole. Below it,
everything is a pure function of (seed, epoch, example index): see `stateless_random`.

Importing this package costs nothing; take each name from its module, for instance
`from nystromformer.data.prepare import prepare`.
"""
