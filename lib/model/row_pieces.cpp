#include "lib/model/row_pieces.h"

#include <algorithm>

namespace mpinfer::model {

std::vector<RowPiece> row_pieces(int64_t rows) {
  // Four, because the two transfers of a sum lie beside products of two others; whole tiles of a
  // GPU's products, at least a wave of them.
  constexpr int64_t kTile = 1024;
  static_assert(kLeastRowsOfPieces > 2 * kTile, "three pieces at least");
  const int64_t at_once = rows < kLeastRowsOfPieces ? rows
                                                    : (rows + kMostRowPieces * kTile - 1) /
                                                          (kMostRowPieces * kTile) * kTile;
  std::vector<RowPiece> out;
  for (int64_t begin = 0; begin < rows; begin += at_once) {
    out.push_back({begin, std::min(at_once, rows - begin)});
  }
  return out;
}

}  // namespace mpinfer::model
