// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace remusd::guest {

/// Name of bit `bit` (0 to 31) of a CPUID word such as "cpuid[1].ecx", "cpuid[7,0].ebx" or
/// "cpuid[0x80000001].edx", spelled as Linux does in /proc/cpuinfo; "bit 5 of WORD" where none is known.
/// Source: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; Linux
/// Documentation/virt/kvm/x86/cpuid.rst.
std::string feature_name(std::string_view word, unsigned bit);

}  // namespace remusd::guest
