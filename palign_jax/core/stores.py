"""Object stores behind etils.epath, told to be honest.

fsspec remembers listings: a process would not see what another one has put, or
would read an object with the size it once had.
"""

import fsspec

_PROTOCOLS = ('gs', 'gcs', 's3', 'az', 'abfs', 'hf')


def see_what_is_there() -> None:
  """Turns the memory of listings off, for stores not used yet."""
  for protocol in _PROTOCOLS:
    settings = fsspec.config.conf.setdefault(protocol, {})
    settings['use_listings_cache'] = False
