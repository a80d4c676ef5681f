"""Many runs in one folder: ``python train.py -m``. Jobs that were finished are skipped, unfinished ones are resumed."""
