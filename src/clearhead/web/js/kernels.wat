;; The inner loops of the page's model, in WebAssembly with SIMD. `tools/page_kernels.py` assembles them to kernels.wasm.
;;
;; Everything is in one memory: the model's tensors as they are in the file, then the cache and the scratch arrays (compute.js).
;; Pointers are in bytes. Sums are in float32, four or more side by side.
(module
  (memory (import "page" "memory") 1)

  ;; out[row] = sum over i of weight[row][i] * x[i], for an int8 matrix [rows, width] whose rows are cut into groups of
  ;; 32 weights with a bfloat16 scale each.
  (func (export "product")
    (param $x i32) (param $weight i32) (param $scale i32) (param $rows i32) (param $width i32) (param $out i32)
    (local $row_end i32) (local $group_end i32) (local $p i32) (local $pairs v128)
    (local $a v128) (local $b v128) (local $sum v128) (local $tail f32) (local $tail_sum f32)
    (local.set $row_end (i32.add (local.get $out) (i32.shl (local.get $rows) (i32.const 2))))
    (block $done
      (loop $each_row
        (br_if $done (i32.ge_u (local.get $out) (local.get $row_end)))
        (local.set $p (local.get $x))
        (local.set $sum (v128.const f32x4 0 0 0 0))
        (local.set $tail_sum (f32.const 0))
        (local.set $group_end (i32.add (local.get $weight) (i32.and (local.get $width) (i32.const -32))))
        (block $no_groups
          (loop $each_group
            (br_if $no_groups (i32.ge_u (local.get $weight) (local.get $group_end)))
            ;; weights 0..7
            (local.set $pairs (v128.load8x8_s (local.get $weight)))
            (local.set $a (f32x4.mul (v128.load (local.get $p))
              (f32x4.convert_i32x4_s (i32x4.extend_low_i16x8_s (local.get $pairs)))))
            (local.set $b (f32x4.mul (v128.load offset=16 (local.get $p))
              (f32x4.convert_i32x4_s (i32x4.extend_high_i16x8_s (local.get $pairs)))))
            ;; 8..15
            (local.set $pairs (v128.load8x8_s offset=8 (local.get $weight)))
            (local.set $a (f32x4.add (local.get $a) (f32x4.mul (v128.load offset=32 (local.get $p))
              (f32x4.convert_i32x4_s (i32x4.extend_low_i16x8_s (local.get $pairs))))))
            (local.set $b (f32x4.add (local.get $b) (f32x4.mul (v128.load offset=48 (local.get $p))
              (f32x4.convert_i32x4_s (i32x4.extend_high_i16x8_s (local.get $pairs))))))
            ;; 16..23
            (local.set $pairs (v128.load8x8_s offset=16 (local.get $weight)))
            (local.set $a (f32x4.add (local.get $a) (f32x4.mul (v128.load offset=64 (local.get $p))
              (f32x4.convert_i32x4_s (i32x4.extend_low_i16x8_s (local.get $pairs))))))
            (local.set $b (f32x4.add (local.get $b) (f32x4.mul (v128.load offset=80 (local.get $p))
              (f32x4.convert_i32x4_s (i32x4.extend_high_i16x8_s (local.get $pairs))))))
            ;; 24..31
            (local.set $pairs (v128.load8x8_s offset=24 (local.get $weight)))
            (local.set $a (f32x4.add (local.get $a) (f32x4.mul (v128.load offset=96 (local.get $p))
              (f32x4.convert_i32x4_s (i32x4.extend_low_i16x8_s (local.get $pairs))))))
            (local.set $b (f32x4.add (local.get $b) (f32x4.mul (v128.load offset=112 (local.get $p))
              (f32x4.convert_i32x4_s (i32x4.extend_high_i16x8_s (local.get $pairs))))))
            ;; the group's scale: bfloat16 is the upper half of a float32
            (local.set $sum (f32x4.add (local.get $sum) (f32x4.mul (f32x4.add (local.get $a) (local.get $b))
              (f32x4.splat (f32.reinterpret_i32 (i32.shl (i32.load16_u (local.get $scale)) (i32.const 16)))))))
            (local.set $scale (i32.add (local.get $scale) (i32.const 2)))
            (local.set $weight (i32.add (local.get $weight) (i32.const 32)))
            (local.set $p (i32.add (local.get $p) (i32.const 128)))
            (br $each_group)))
        ;; a last group of fewer than 32
        (if (i32.and (local.get $width) (i32.const 31))
          (then
            (local.set $tail (f32.reinterpret_i32 (i32.shl (i32.load16_u (local.get $scale)) (i32.const 16))))
            (local.set $scale (i32.add (local.get $scale) (i32.const 2)))
            (local.set $group_end (i32.add (local.get $weight) (i32.and (local.get $width) (i32.const 31))))
            (loop $each_weight
              (local.set $tail_sum (f32.add (local.get $tail_sum) (f32.mul (f32.mul (local.get $tail)
                (f32.convert_i32_s (i32.load8_s (local.get $weight)))) (f32.load (local.get $p)))))
              (local.set $weight (i32.add (local.get $weight) (i32.const 1)))
              (local.set $p (i32.add (local.get $p) (i32.const 4)))
              (br_if $each_weight (i32.lt_u (local.get $weight) (local.get $group_end))))))
        (f32.store (local.get $out) (f32.add (call $total (local.get $sum)) (local.get $tail_sum)))
        (local.set $out (i32.add (local.get $out) (i32.const 4)))
        (br $each_row))))

  ;; out[i * out_stride] = scale * (row i of `rows`) . x, for `count` rows that lie `stride` floats apart.
  (func (export "dots")
    (param $x i32) (param $rows i32) (param $stride i32) (param $count i32) (param $width i32) (param $factor f32)
    (param $out i32) (param $out_stride i32)
    (local $p i32) (local $q i32) (local $end i32) (local $whole i32) (local $a v128) (local $b v128) (local $tail f32)
    (local.set $whole (i32.shl (i32.and (local.get $width) (i32.const -8)) (i32.const 2)))
    (local.set $end (i32.add (local.get $x) (i32.shl (local.get $width) (i32.const 2))))
    (local.set $whole (i32.add (local.get $x) (local.get $whole)))
    (block $done
      (loop $each_row
        (br_if $done (i32.eqz (local.get $count)))
        (local.set $p (local.get $x))
        (local.set $q (local.get $rows))
        (local.set $a (v128.const f32x4 0 0 0 0))
        (local.set $b (v128.const f32x4 0 0 0 0))
        (local.set $tail (f32.const 0))
        (block $no_eights
          (loop $each_eight
            (br_if $no_eights (i32.ge_u (local.get $p) (local.get $whole)))
            (local.set $a (f32x4.add (local.get $a) (f32x4.mul (v128.load (local.get $p)) (v128.load (local.get $q)))))
            (local.set $b (f32x4.add (local.get $b)
              (f32x4.mul (v128.load offset=16 (local.get $p)) (v128.load offset=16 (local.get $q)))))
            (local.set $p (i32.add (local.get $p) (i32.const 32)))
            (local.set $q (i32.add (local.get $q) (i32.const 32)))
            (br $each_eight)))
        (block $no_rest
          (loop $each_one
            (br_if $no_rest (i32.ge_u (local.get $p) (local.get $end)))
            (local.set $tail (f32.add (local.get $tail) (f32.mul (f32.load (local.get $p)) (f32.load (local.get $q)))))
            (local.set $p (i32.add (local.get $p) (i32.const 4)))
            (local.set $q (i32.add (local.get $q) (i32.const 4)))
            (br $each_one)))
        (f32.store (local.get $out) (f32.mul (local.get $factor)
          (f32.add (call $total (f32x4.add (local.get $a) (local.get $b))) (local.get $tail))))
        (local.set $out (i32.add (local.get $out) (i32.shl (local.get $out_stride) (i32.const 2))))
        (local.set $rows (i32.add (local.get $rows) (i32.shl (local.get $stride) (i32.const 2))))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br $each_row))))

  ;; out[0..width] = sum over i of factors[i] * (row i of `rows`), for `count` rows that lie `stride` floats apart.
  (func (export "blend")
    (param $factors i32) (param $rows i32) (param $stride i32) (param $count i32) (param $width i32) (param $out i32)
    (local $end i32) (local $whole i32) (local $factors_end i32) (local $f i32) (local $q i32) (local $a v128) (local $one f32)
    (local.set $stride (i32.shl (local.get $stride) (i32.const 2)))
    (local.set $factors_end (i32.add (local.get $factors) (i32.shl (local.get $count) (i32.const 2))))
    (local.set $whole (i32.add (local.get $out) (i32.shl (i32.and (local.get $width) (i32.const -4)) (i32.const 2))))
    (local.set $end (i32.add (local.get $out) (i32.shl (local.get $width) (i32.const 2))))
    (block $no_fours
      (loop $each_four
        (br_if $no_fours (i32.ge_u (local.get $out) (local.get $whole)))
        (local.set $a (v128.const f32x4 0 0 0 0))
        (local.set $f (local.get $factors))
        (local.set $q (local.get $rows))
        (block $summed
          (loop $each_row
            (br_if $summed (i32.ge_u (local.get $f) (local.get $factors_end)))
            (local.set $a (f32x4.add (local.get $a)
              (f32x4.mul (v128.load32_splat (local.get $f)) (v128.load (local.get $q)))))
            (local.set $f (i32.add (local.get $f) (i32.const 4)))
            (local.set $q (i32.add (local.get $q) (local.get $stride)))
            (br $each_row)))
        (v128.store (local.get $out) (local.get $a))
        (local.set $out (i32.add (local.get $out) (i32.const 16)))
        (local.set $rows (i32.add (local.get $rows) (i32.const 16)))
        (br $each_four)))
    (block $no_rest
      (loop $each_one
        (br_if $no_rest (i32.ge_u (local.get $out) (local.get $end)))
        (local.set $one (f32.const 0))
        (local.set $f (local.get $factors))
        (local.set $q (local.get $rows))
        (block $summed
          (loop $each_row
            (br_if $summed (i32.ge_u (local.get $f) (local.get $factors_end)))
            (local.set $one (f32.add (local.get $one) (f32.mul (f32.load (local.get $f)) (f32.load (local.get $q)))))
            (local.set $f (i32.add (local.get $f) (i32.const 4)))
            (local.set $q (i32.add (local.get $q) (local.get $stride)))
            (br $each_row)))
        (f32.store (local.get $out) (local.get $one))
        (local.set $out (i32.add (local.get $out) (i32.const 4)))
        (local.set $rows (i32.add (local.get $rows) (i32.const 4)))
        (br $each_one))))

  ;; out[0..width] = one row of an int8 matrix as floats.
  (func (export "unpack") (param $weight i32) (param $scale i32) (param $width i32) (param $out i32)
    (local $i i32)
    (block $done
      (loop $each
        (br_if $done (i32.ge_u (local.get $i) (local.get $width)))
        (f32.store (i32.add (local.get $out) (i32.shl (local.get $i) (i32.const 2))) (f32.mul
          (f32.convert_i32_s (i32.load8_s (i32.add (local.get $weight) (local.get $i))))
          (f32.reinterpret_i32 (i32.shl (i32.load16_u
            (i32.add (local.get $scale) (i32.shl (i32.shr_u (local.get $i) (i32.const 5)) (i32.const 1)))) (i32.const 16)))))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br $each))))

  ;; The sum of a vector's four floats.
  (func $total (param $v v128) (result f32)
    (local.set $v (f32x4.add (local.get $v)
      (i8x16.shuffle 8 9 10 11 12 13 14 15 0 1 2 3 4 5 6 7 (local.get $v) (local.get $v))))
    (f32.add (f32x4.extract_lane 0 (local.get $v)) (f32x4.extract_lane 1 (local.get $v)))))
