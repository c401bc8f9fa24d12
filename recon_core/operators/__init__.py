"""Linear operators from images to k-space and back: coils, off-resonance and sampling in one model.

    sampling = sampling_operator(trajectory, (ny, nx))                  # [2, shot, sample] in cycles per field of view
    functions = LowRank(times, low_hz=-150, high_hz=150)                # [shot, sample] in seconds; all fields within
    encoding = Encoding(sampling, functions)                            # serves every slice, coil and field map
    model = LinearModel(encoding, coil_maps, field_hz)                  # [coil, ny, nx]; [ny, nx]

    data = model.data_images(kspace)                                    # the samples are visited once ...
    residual = model.residual_images(image, data)                       # ... and never again
    model.image_gradient(residual), model.field_gradient(image, residual)  # of |A x - y|^2
    model.normal(image)                                                 # A^H A x

Without off-resonance: `LinearModel(Encoding(sampling), coil_maps)`.
"""

from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.off_resonance import HardSegments, LowRank
from recon_core.operators.sampling import sampling_operator

__all__ = ["Encoding", "HardSegments", "LinearModel", "LowRank", "sampling_operator"]
