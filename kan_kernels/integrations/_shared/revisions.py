"""Fingerprints of the peers' code, a hash for each statement: no line of theirs.

Written by tools/peer_revisions.py. A line without indent names peer and function; its hashes follow. A
function that has several revisions is named once for each.
"""

_TEXT = """
pykan KANLayer / forward
    aee7db0a 86af0312 843b4c06 d6c890d2 d5bcd70a 83d19ffd fe081f73 3675dbe9 ab048772 fae6aeab
    bff428d8
pykan KANLayer / coef2curve
    2adec925 93ed60e2 bf064da2 0faccd3f
pykan KANLayer / B_batch
    d3faead7 5be314a5 e67c9c96 fd8d1f5e 831db532 de4d4e17 c5b7c216 93b1b6d9 f19a7751 9dcb4523
    91675d2c
pykan KANLayer / update_grid_from_samples
    62ac48ca 78a3f4ed f6e34b9b b14c8dcc 7ef9f82b 0e7f0c8c 831db532 4158c144 abfb50b0 20e1b954
    664894cd 431d4f49 f02fd225 730fac40 0123e59e c27b2f85 831db532 5d9fe186 858c0330 c72dc331
    d5faabd9 a03a4c57
pykan KANLayer / extend_grid
    d1e83a02 740a712d 77be1148 831db532 76dff954 5b6b38ad 1b087245
pykan KANLayer / curve2coef
    f799f16b 34140f7b 3ae7e940 b09e550d 6113f61a 242a41ba 8299556c 973245f8 ecfdc5d6 a86d35e7
    831db532 721add5f b40afd9c a0dfb4a8 d2604075
pykan MultKAN / forward
    d0412d80 8a12e6c7 88160a37 32a40b2e 5c960948 4e24fc58 264d464d 6c1e9a08 5028476a e5115635
    68afb9f3 1bb8dfaf 25904b5b 53d4c472 217540ad 831db532 4de0030a b61185f5 3422df73 bf46657c
    b5342329 732ab38a a26c8190 92caf0fa 332410e9 3422df73 4ca1ae07 8ba3514e 332410e9 3422df73
    f4b02844 32e7445f 989870df 4d0d315b 944f84e9 1c8e330c 15f5fc42 49165936 9f09475a 001ff03f
    160ad8d1 1f79d9c7 aa2f074e 872aac3e 3422df73 7ce1752f c376db23 34e2cfe5 82b8688e 7b66ef01
    2e8e9521 2179d1de b5342329 047225dd c376db23 811194f0 355e0d4b 82b8688e e2cdcbf3 7b9008d3
    45b0aeed 095c70ab 8a2d6d8d bb18a340 82b8688e 0adccfd0 2e8e9521 a7112dd2 5ad3ebd9 3422df73
    8f0a976c 5e59307b 71c6ce62 ed3e6bba
pykan MultKAN / width_in
    1580936c 4c237b6e 2324707a bf2dfba9
pykan MultKAN / reg
    96b06415 5706968a 831db532 b9d6c958 c5b7c216 c8d750b8 3422df73 c135f35a b5342329 17f1984d
    c376db23 bcedae14 948f671e c7ca5459 82b8688e edf32c9c 2e8e9521 a1ee8ece 7b9008d3 cccc4cef
    095c70ab 3194234c 3a529e46 eff14893 831db532 1eee03b6 8e4e2ec0 258af3bc f47a5394 05aeacb6
    f5d87489 a7b64eb5 0c72f33f 831db532 4de6274e 48150878 8446eaba f54b8d30
pykan Symbolic_KANLayer / forward
    d0412d80 d85fa104 5a4d73eb 25167780 831db532 6d875079 c2ac9507 3422df73 de91c31d c376db23
    5e57a094 948f671e 95a77574 74cd43ae 12ea3902 dab9f3dc 60eac9ff f210868e 3295a821
ChebyKAN / forward
    aee7db0a 40294eb0 8908661e 80ae454b 08a2ca00 d2b8e401 18e86503 698f6d8e bf2dfba9
efficient-kan / forward
    aee7db0a 38cd1cbe aecf7fd4 b04702ba 38340d86 54629322 99671553 4e62d759 91675d2c
efficient-kan / forward
    aee7db0a 38cd1cbe aecf7fd4 c09cce66 38340d86 54629322 99671553 ed028ef5 91675d2c
efficient-kan / forward
    aee7db0a 723237e4 dcefdec2 af4c202d 834a6f47
efficient-kan / scaled_spline_weight
    1580936c 5146a82f
efficient-kan / b_splines
    aee7db0a 723237e4 95f14758 17d793e1 e9e26edb 83534dc6 831db532 909a3e80 c45a9b40 71909bdf
efficient-kan / update_grid
    7f8ed514 723237e4 b3986741 0841d81c 2e46601e b5275a9a bd85dd7c 908b3319 adbdd28e dc8c9ab1
    143c032f 3d98832f 8e22db5a 258d57ce d5e15f07 5842e9b5 9092f139
efficient-kan / curve2coeff
    fce7303c 723237e4 d35a7b65 34bf1bc7 62d21628 f7ebf405 aa0400e9 d8f2e62c aa5d1f46
FastKAN / forward
    91776e1d eeeb24dd 831db532 338f3c48 c5b7c216 9dc47398 ec15c068 16df8276 831db532 2870c492
    d2429987 0e53464c
FastKAN / forward
    9737a49a 2ffd157f 831db532 338f3c48 c5b7c216 9dc47398 ec15c068 16df8276 831db532 2870c492
    d2429987 0e53464c
FastKAN / forward
    aee7db0a 3bac7e99 bd3efe77 16df8276 831db532 fc79d2ff afb449ba 0645bc37
FastKAN rbf / forward
    aee7db0a a31d4ea7
FourierKAN / forward
    aee7db0a aecf7fd4 17049ac5 23967ae0 0ef83776 e3f3314c 81dd8547 48113f2f efa7c295 bf18b0be
    0566d1a6 831db532 c4bc6092 94036b6d 73e049c4
"""


def _parsed(text: str) -> dict[str, dict[str, tuple[tuple[str, ...], ...]]]:
    known: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {}
    hashes: list[str] = []
    for line in [*reversed(text.splitlines())]:  # a revision's hashes stand behind its name
        if line.startswith(" "):
            hashes = line.split() + hashes
        elif line:
            peer, _, name = line.partition(" / ")
            functions = known.setdefault(peer, {})
            functions[name] = (tuple(hashes), *functions.get(name, ()))
            hashes = []
    return {peer: dict(reversed(functions.items())) for peer, functions in reversed(known.items())}


KNOWN = _parsed(_TEXT)
"""Peer -> function -> its revisions, each a hash for every statement."""
