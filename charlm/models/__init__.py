"""Network families: plain `nn.Module`s that know nothing of Lightning, Hydra or text.

Every family obeys one contract:

* ``network(x_BT, state=None) -> (logits, state)`` with x_BT int64 of shape (batch, time). Families that
  predict at every step return logits of shape (batch, time, vocab), those that predict only after a
  window (batch, 1, vocab). ``state=None`` means `initial_state`.
* ``network.initial_state(batch_size)`` gives the state before the first character: a tensor or a nested
  tuple of tensors whose dimension 1 is the batch.
* ``network.context`` is how many characters a prediction can depend on, or None when unbounded.

Feeding a text in pieces with the state carried gives the same logits as feeding it whole, rows do not
influence one another, and no output depends on a later character.

A new family is one file here and one yaml in ``conf/model/``.
"""
