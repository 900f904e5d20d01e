"""A system that does nothing but write down that it was asked."""

import os


class Fake:

  def __init__(self, name, log, fails=False):
    self.name, self.log, self.fails = name, log, fails

  def _note(self, what):
    with open(self.log, 'a') as f:
      f.write(f'{self.name} {what}\n')

  def warm_up(self):
    self._note('warm')

  def run(self):
    self._note('run')
    if self.fails:
      raise ValueError('what went wrong')
    return {'tokens': 7, 'pid': os.getpid()}

  def peak_bytes(self):
    return None
