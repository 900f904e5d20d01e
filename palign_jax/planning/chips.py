"""What a TPU chip can do, by generation.

Capacity, bandwidth and peak are Google's own, from each generation's page under
https://cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x; read November
2026): bf16 peak 275, 197, 459, 918 and 2307 TFLOP/s; HBM 32, 16, 95, 32 and
192 GiB at 1228, 819, 2765, 1640 and 7380 GB/s; inter-chip links (ICI) of 300,
200, 600, 400 and 600 GB/s per chip and direction, over 6 links in a 3D torus
(v4, v5p, tpu7x) or 4 in a 2D one (v5e, v6e).  Between slices (DCN) v5e has 6.4
and v6e 25.6 Tbit/s for a pod of 256 chips, 25 and 100 Gbit/s for each; the
50 of v4 and v5p and the 100 of tpu7x have not been checked against a page.

Not all of the HBM is a program's: `usable` is what libtpu 0.0.51's compiler
says is available to one device ('exceeds available HBM (15.75G)').
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip; a device of JAX may be half of it.

  Attributes:
    name: As in a topology's name.
    peak: bf16 FLOP/s.
    hbm: Bytes.
    usable: Bytes that a program may use on one device.
    hbm_bandwidth: Bytes per second.
    link: Bytes per second of one link, in one direction.
    dims: Of the torus; there are two links in each.
    wraps: A dimension whose size this divides is closed to a ring.
    dcn: Bytes per second of a chip to other slices.
    devices: JAX devices that a chip is.
  """

  name: str
  peak: float
  hbm: int
  usable: int
  hbm_bandwidth: float
  link: float
  dims: int
  wraps: int
  dcn: float
  devices: int = 1


def _chip(name, tflops, gib, usable, gbps, link, dims, wraps, dcn, devices=1):
  size = lambda gib: int(gib * GIB)
  return Chip(
      name=name,
      peak=tflops * 1e12,
      hbm=size(gib),
      usable=size(usable),
      hbm_bandwidth=gbps * 1e9,
      link=link * 1e9,
      dims=dims,
      wraps=wraps,
      dcn=dcn * 1e9,
      devices=devices,
  )


CHIPS = {
    chip.name: chip
    for chip in (
        _chip('v4', 275, 32, 30.75, 1228, 50, 3, 4, 6.25),
        _chip('v5e', 197, 16, 15.75, 819, 50, 2, 16, 3.125),
        _chip('v5p', 459, 95, 95.73, 2765, 100, 3, 4, 6.25),
        _chip('v6e', 918, 32, 31.24, 1640, 100, 2, 16, 12.5),
        _chip('tpu7x', 2307, 192, 94.74, 7380, 100, 3, 4, 12.5, devices=2),
    )
}
