// SPDX-License-Identifier: Apache-2.0
// The calls of the fuzz target (fuzz/attention_fuzzer.cpp) without a fuzzer: its seeds, and as many that are drawn.
//
// GQA_FUZZ_WRITE_CORPUS=folder writes the seeds: to be done again when what is drawn has changed. GQA_FUZZ_CASES=100000 draws more.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>

#include "support/random_hostile.hpp"

namespace gqa::test {
namespace {

namespace fs = std::filesystem;

struct Tally {
  std::map<Index, int> combinations;
  std::map<Storage, int> storages;
  std::map<Fate, int> fates;
  void add(const HostileDrawn& call) {
    ++combinations[call.drawn().combination];
    ++storages[call.drawn().place.storage];
    ++fates[call.fate()];
  }
  int of(Fate fate) const { return fates.count(fate) == 0 ? 0 : fates.at(fate); }
};

TEST(FuzzCorpus, ComputesOrIsRefused) {
  Tally tally;
  int files = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(GQA_FUZZ_CORPUS)) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::vector<std::uint8_t> bytes{std::istreambuf_iterator<char>(file), {}};
    ByteDraws draws(bytes);
    HostileDrawn call(draws);
    EXPECT_EQ(call.complaint(), "") << entry.path() << "\n" << to_text(draws.made());
    tally.add(call);
    ++files;
  }
  std::printf("%d seeds: %d computed, %d refused\n", files, tally.of(Fate::computed), tally.of(Fate::refused));
  EXPECT_EQ(static_cast<Index>(tally.combinations.size()), combinations()) << "seeds of every variant";
  EXPECT_EQ(tally.storages.size(), 3u) << "and storage";
  EXPECT_GE(tally.of(Fate::computed), combinations());
  EXPECT_GE(tally.of(Fate::refused), 10);
}

TEST(FuzzCorpus, DrawnCallsComputeOrAreRefused) {
  const char* given = std::getenv("GQA_FUZZ_CASES");
  const int cases = given == nullptr ? 2500 : std::atoi(given);
  Tally tally;
  for (int i = 0; i < cases; ++i) {
    SeededDraws draws(static_cast<std::uint64_t>(i) + 77'000'000u);
    HostileDrawn call(draws);
    ASSERT_EQ(call.complaint(), "") << "case " << i << ", " << combination_name(call.drawn().combination) << "\n"
                                    << to_text(draws.made());
    tally.add(call);
  }
  std::printf("%d calls: %d computed, %d refused, %d not made\n", cases, tally.of(Fate::computed),
              tally.of(Fate::refused), tally.of(Fate::not_made));
  EXPECT_GT(tally.of(Fate::computed), cases / 4);
  EXPECT_GT(tally.of(Fate::refused), cases / 4);
  EXPECT_LT(tally.of(Fate::not_made), cases / 8);
}

/// A small call of each variant, the storages by turns, and as many again that are refused for different reasons.
TEST(FuzzCorpus, IsWrittenWhenAskedFor) {
  const char* folder = std::getenv("GQA_FUZZ_WRITE_CORPUS");
  if (folder == nullptr || *folder == '\0') GTEST_SKIP() << "no GQA_FUZZ_WRITE_CORPUS is given";
  std::map<std::string, int> written;
  const auto write = [&](const std::string& name, const Draws& draws) {
    const std::vector<std::uint8_t> bytes = bytes_of(draws.made());
    std::ofstream(fs::path(folder) / name, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    ++written[name];
  };
  constexpr Storage storages[] = {Storage::contiguous, Storage::ring, Storage::paged};
  std::map<std::string, int> reasons;
  int refused = 0;
  for (std::uint64_t seed = 1; written.size() < static_cast<std::size_t>(combinations()) + 22; ++seed) {
    SeededDraws draws(seed);
    HostileDrawn call(draws);
    if (call.complaint() != "" || bytes_of(draws.made()).size() > 200) continue;
    const Index c = call.drawn().combination;
    const std::string name = "variant_" + std::to_string(c);
    if (call.fate() == Fate::computed && call.changes() == 0 && call.drawn().place.storage == storages[c % 3] &&
        call.drawn().work() > 1000 && written.count(name) == 0)
      write(name, draws);
    if (call.fate() == Fate::refused && refused < 22 && call.changes() == 1 && reasons[call.reason()]++ == 0)
      write("refused_" + std::to_string(refused++), draws);
  }
}

}  // namespace
}  // namespace gqa::test
