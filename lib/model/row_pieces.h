// Pieces of a step's rows: what is computed row by row goes piece by piece, so that a piece's sum
// over TP hides behind products of others. A function of the rows alone, the same on every rank.
#pragma once

#include <cstdint>
#include <vector>

namespace mpinfer::model {

struct RowPiece {
  int64_t begin = 0;
  int64_t rows = 0;
};

inline constexpr int64_t kMostRowPieces = 4;
inline constexpr int64_t kLeastRowsOfPieces = 2049;

// One of all rows where there are too few for products of pieces to stay efficient.
std::vector<RowPiece> row_pieces(int64_t rows);

}  // namespace mpinfer::model
