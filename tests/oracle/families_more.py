"""The families beside the first six, and all of them."""

import families
import families_experts
import families_extra
import families_gemma
import families_layernorm
import families_partial
import families_rotary

OTHERS = [
    *families_layernorm.FAMILIES,
    *families_experts.FAMILIES,
    *families_rotary.FAMILIES,
    *families_partial.FAMILIES,
    *families_gemma.FAMILIES,
    *families_extra.FAMILIES,
]
ALL = [*families.FAMILIES, *OTHERS]
