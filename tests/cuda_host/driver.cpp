// Runs recorded calls without Python, for sanitizers: driver CALLS RESULTS MODE. Every tensor lies in a heap block of
// exactly its size. See sanitize.py for the file.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

extern "C" int kan_cuda_host_call(const void* call);
extern "C" const char* kan_cuda_host_network(const void* call);
extern "C" int64_t kan_cuda_host_network_size();
extern "C" void kan_cuda_host_mode(int mode);

namespace {

struct Block {
  int64_t offset, bytes, is_output;  // of the pointer within the call
};

void read(void* to, size_t bytes, std::FILE* file) {
  if (bytes && std::fread(to, 1, bytes, file) != bytes) std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  std::FILE* in = std::fopen(argv[1], "rb");
  std::FILE* out = std::fopen(argv[2], "wb");
  if (!in || !out) return 2;
  kan_cuda_host_mode(std::atoi(argv[3]));
  int64_t header[2];  // bytes of the call, blocks
  while (std::fread(header, 1, sizeof header, in) == sizeof header) {
    const std::unique_ptr<unsigned char[]> call(new unsigned char[size_t(header[0])]);
    read(call.get(), size_t(header[0]), in);
    std::vector<Block> blocks(static_cast<size_t>(header[1]));
    read(blocks.data(), blocks.size() * sizeof(Block), in);
    std::vector<std::unique_ptr<unsigned char[]>> data;
    for (const Block& block : blocks) {
      data.emplace_back(new unsigned char[size_t(block.bytes)]);
      read(data.back().get(), size_t(block.bytes), in);
      const void* const pointer = data.back().get();
      std::memcpy(call.get() + block.offset, &pointer, sizeof pointer);
    }
    const bool network = header[0] == kan_cuda_host_network_size();
    if (network ? *kan_cuda_host_network(call.get()) != 0 : kan_cuda_host_call(call.get()) != 0) return 1;
    for (size_t n = 0; n < blocks.size(); ++n) {
      if (blocks[n].is_output) std::fwrite(data[n].get(), 1, size_t(blocks[n].bytes), out);
    }
  }
  std::fclose(out);
  return 0;
}
