// Kernels around the network. Each has a numpy twin of the same name in twin.py.
//
// Every thread makes one byte of output, selected by one linear index; no shared memory, no
// synchronisation, no order between threads. So a loop over all indices is the same program, which
// is how the tests execute this file on a CPU.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

// Detection events of a batch of shots, straight from the messages in receive memory.
//
// memory      u8, receive memory of this worker
// message_at  u64 [batch][pieces], byte offset of each message in it: any ring, any stride
// row_start   u32 [n_detectors + 1], row_piece, row_bit u32 [row_start[n_detectors]]:
//             detector j is the parity of the bits row_bit[k] of the messages row_piece[k],
//             row_start[j] <= k < row_start[j + 1]. Bit i of a message is bit i % 8 of its byte
//             i / 8 (LSB first), headers counted.
// dets        u8 [batch][n_detectors], 0 or 1: input of the engine
extern "C" __global__ void form_detectors(
    const u8* memory, const u64* message_at, u32 pieces,
    const u32* row_start, const u32* row_piece, const u32* row_bit,
    u32 n_detectors, u32 batch, u8* dets)
{
    const u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (u64)batch * n_detectors)
        return;
    const u32 shot = (u32)(index / n_detectors);
    const u32 detector = (u32)(index % n_detectors);
    const u64* messages = message_at + (u64)shot * pieces;
    u32 parity = 0;
    for (u32 k = row_start[detector]; k < row_start[detector + 1]; ++k) {
        const u32 bit = row_bit[k];
        parity ^= (u32)memory[messages[row_piece[k]] + (bit >> 3)] >> (bit & 7);
    }
    dets[index] = (u8)(parity & 1);
}

// Output of the engine, packed for the matcher.
//
// output      u8 [batch][1 + n_detectors]: flip of the observable, residual detectors
// residual    u8 [batch][ceil(n_detectors / 8)], LSB first, unused bits 0
// pre_l       u8 [batch]
// invalid     u8 [batch], 0 on entry: set to 1 where a value is neither 0 nor 1 (all writers of a
//             shot write the same value)
extern "C" __global__ void pack_output(
    const u8* output, u32 n_detectors, u32 batch, u8* residual, u8* pre_l, u8* invalid)
{
    const u32 n_bytes = (n_detectors + 7) / 8;
    const u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (u64)batch * n_bytes)
        return;
    const u32 shot = (u32)(index / n_bytes);
    const u32 first = (u32)(index % n_bytes) * 8;
    const u8* row = output + (u64)shot * (1 + (u64)n_detectors);
    u32 packed = 0;
    u32 seen = 0;
    for (u32 i = 0; i < 8 && first + i < n_detectors; ++i) {
        const u32 value = row[1 + first + i];
        packed |= (value & 1) << i;
        seen |= value;
    }
    if (first == 0) {
        pre_l[shot] = row[0];
        seen |= row[0];
    }
    residual[index] = (u8)packed;
    if (seen > 1)
        invalid[shot] = 1;
}
