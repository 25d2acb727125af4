"""torchvision's detectors: their stages as networks (``single_stage``, ``two_stage``), what surrounds these
(``detector``), boxes of whole batches (``boxes``), and their names and weights (``building``)."""
