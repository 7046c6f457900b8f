// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/cpu_features.h"

#include <array>
#include <charconv>
#include <cstdint>
#include <optional>

namespace remusd::guest {
namespace {

struct Word {
  uint32_t leaf;
  uint32_t subleaf;
  std::string_view reg;
  std::string_view names;  // from bit 0, separated by one space; "-" has no name
};

constexpr std::array kWords{
    Word{0x1, 0, "ecx",
         "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca "
         "sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor"},
    Word{
        0x1, 0, "edx",
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx "
        "fxsr sse sse2 ss ht tm ia64 pbe"},
    Word{0x6, 0, "eax", "dtherm ida arat - pln - pts hwp hwp_notify hwp_act_window hwp_epp hwp_pkg_req"},
    Word{0x7, 0, "ebx",
         "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds "
         "mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel_pt avx512pf "
         "avx512er avx512cd sha_ni avx512bw avx512vl"},
    Word{0x7, 0, "ecx",
         "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 cet_ss gfni vaes vpclmulqdq avx512_vnni "
         "avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid key_locker bus_lock_detect cldemote - "
         "movdiri movdir64b enqcmd sgx_lc pks"},
    Word{0x7, 0, "edx",
         "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear "
         "rtm_always_abort - tsx_force_abort serialize hybrid tsxldtrk - pconfig arch_lbr cet_ibt - amx_bf16 "
         "avx512_fp16 amx_tile amx_int8 spec_ctrl stibp flush_l1d arch_capabilities core_capability ssbd"},
    Word{0x7, 1, "eax",
         "- - - - avx_vnni avx512_bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - - - - - amx_fp16 hreset "
         "avx_ifma - - lam"},
    Word{0xd, 1, "eax", "xsaveopt xsavec xgetbv1 xsaves xfd"},
    Word{0x14, 0, "ecx", "- - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - intel_pt_lip"},
    Word{0x40000001, 0, "eax",
         "kvmclock kvm_nopiodelay kvm_mmu kvmclock2 kvm_asyncpf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt - "
         "kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_ipi kvm_poll_control kvm_pv_sched_yield kvm_asyncpf_int "
         "kvm_msi_ext_dest_id - - - - - - - - kvmclock_stable"},
    Word{0x80000001, 0, "ecx",
         "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit "
         "wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc "
         "mwaitx"},
    Word{0x80000001, 0, "edx",
         "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm "
         "3dnowext 3dnow"},
    Word{0x80000007, 0, "edx", "- - - - - - - - invtsc"},
    Word{0x80000008, 0, "ebx",
         "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - - - - - - - "
         "amd_ppin amd_ssbd virt_ssbd amd_no_ssb - amd_psfd"},
    Word{0x8000000a, 0, "edx",
         "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - pausefilter - "
         "pfthreshold avic - v_vmsave_vmload vgif"},
};

/// "1" and "13" are decimal, "0x80000001" and "80000001" hexadecimal: leafs of eight digits are always
/// written in hexadecimal.
std::optional<uint32_t> parse_leaf(std::string_view text) {
  int base = text.size() == 8 ? 16 : 10;
  if (text.starts_with("0x") || text.starts_with("0X")) {
    text.remove_prefix(2);
    base = 16;
  }
  uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

const Word* find_word(std::string_view name) {
  constexpr std::string_view kPrefix = "cpuid[";
  const size_t close = name.find("].");
  if (!name.starts_with(kPrefix) || close == std::string_view::npos) return nullptr;
  std::string_view leaf = name.substr(kPrefix.size(), close - kPrefix.size());
  std::string_view subleaf = "0";
  if (const size_t comma = leaf.find(','); comma != std::string_view::npos) {
    subleaf = leaf.substr(comma + 1);
    leaf = leaf.substr(0, comma);
  }
  const auto leaf_number = parse_leaf(leaf);
  const auto subleaf_number = parse_leaf(subleaf);
  std::string reg(name.substr(close + 2));
  for (char& c : reg) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  if (!leaf_number || !subleaf_number) return nullptr;
  for (const Word& word : kWords) {
    if (word.leaf == *leaf_number && word.subleaf == *subleaf_number && word.reg == reg) return &word;
  }
  return nullptr;
}

}  // namespace

std::string feature_name(std::string_view word, unsigned bit) {
  std::string unknown = "bit " + std::to_string(bit) + " of " + std::string(word);
  const Word* known = find_word(word);
  if (known == nullptr) return unknown;
  std::string_view rest = known->names;
  for (unsigned i = 0; i < bit; ++i) {
    const size_t space = rest.find(' ');
    if (space == std::string_view::npos) return unknown;
    rest.remove_prefix(space + 1);
  }
  const std::string_view name = rest.substr(0, rest.find(' '));
  return name == "-" ? unknown : std::string(name);
}

}  // namespace remusd::guest
