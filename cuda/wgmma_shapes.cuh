// The operand lists of wgmma for every N: ptx.cuh includes this once, having defined WGMMA_SHAPE.
//
// An accumulator of N columns is N / 2 registers a thread, %0 and on; the operands behind it have the next numbers. Each
// line continues the one before it, so that N is the lists of N - 8 and four more.
#pragma once

#define WGMMA_OUTS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])

#define WGMMA_REGS_8 "%0, %1, %2, %3"
#define WGMMA_REGS_16 WGMMA_REGS_8 ", %4, %5, %6, %7"
#define WGMMA_REGS_24 WGMMA_REGS_16 ", %8, %9, %10, %11"
#define WGMMA_REGS_32 WGMMA_REGS_24 ", %12, %13, %14, %15"
#define WGMMA_REGS_40 WGMMA_REGS_32 ", %16, %17, %18, %19"
#define WGMMA_REGS_48 WGMMA_REGS_40 ", %20, %21, %22, %23"
#define WGMMA_REGS_56 WGMMA_REGS_48 ", %24, %25, %26, %27"
#define WGMMA_REGS_64 WGMMA_REGS_56 ", %28, %29, %30, %31"
#define WGMMA_REGS_72 WGMMA_REGS_64 ", %32, %33, %34, %35"
#define WGMMA_REGS_80 WGMMA_REGS_72 ", %36, %37, %38, %39"
#define WGMMA_REGS_88 WGMMA_REGS_80 ", %40, %41, %42, %43"
#define WGMMA_REGS_96 WGMMA_REGS_88 ", %44, %45, %46, %47"
#define WGMMA_REGS_104 WGMMA_REGS_96 ", %48, %49, %50, %51"
#define WGMMA_REGS_112 WGMMA_REGS_104 ", %52, %53, %54, %55"
#define WGMMA_REGS_120 WGMMA_REGS_112 ", %56, %57, %58, %59"
#define WGMMA_REGS_128 WGMMA_REGS_120 ", %60, %61, %62, %63"
#define WGMMA_REGS_136 WGMMA_REGS_128 ", %64, %65, %66, %67"
#define WGMMA_REGS_144 WGMMA_REGS_136 ", %68, %69, %70, %71"
#define WGMMA_REGS_152 WGMMA_REGS_144 ", %72, %73, %74, %75"
#define WGMMA_REGS_160 WGMMA_REGS_152 ", %76, %77, %78, %79"
#define WGMMA_REGS_168 WGMMA_REGS_160 ", %80, %81, %82, %83"
#define WGMMA_REGS_176 WGMMA_REGS_168 ", %84, %85, %86, %87"
#define WGMMA_REGS_184 WGMMA_REGS_176 ", %88, %89, %90, %91"
#define WGMMA_REGS_192 WGMMA_REGS_184 ", %92, %93, %94, %95"
#define WGMMA_REGS_200 WGMMA_REGS_192 ", %96, %97, %98, %99"
#define WGMMA_REGS_208 WGMMA_REGS_200 ", %100, %101, %102, %103"
#define WGMMA_REGS_216 WGMMA_REGS_208 ", %104, %105, %106, %107"
#define WGMMA_REGS_224 WGMMA_REGS_216 ", %108, %109, %110, %111"
#define WGMMA_REGS_232 WGMMA_REGS_224 ", %112, %113, %114, %115"
#define WGMMA_REGS_240 WGMMA_REGS_232 ", %116, %117, %118, %119"
#define WGMMA_REGS_248 WGMMA_REGS_240 ", %120, %121, %122, %123"
#define WGMMA_REGS_256 WGMMA_REGS_248 ", %124, %125, %126, %127"

#define WGMMA_OUTS_8 WGMMA_OUTS_4(0)
#define WGMMA_OUTS_16 WGMMA_OUTS_8, WGMMA_OUTS_4(4)
#define WGMMA_OUTS_24 WGMMA_OUTS_16, WGMMA_OUTS_4(8)
#define WGMMA_OUTS_32 WGMMA_OUTS_24, WGMMA_OUTS_4(12)
#define WGMMA_OUTS_40 WGMMA_OUTS_32, WGMMA_OUTS_4(16)
#define WGMMA_OUTS_48 WGMMA_OUTS_40, WGMMA_OUTS_4(20)
#define WGMMA_OUTS_56 WGMMA_OUTS_48, WGMMA_OUTS_4(24)
#define WGMMA_OUTS_64 WGMMA_OUTS_56, WGMMA_OUTS_4(28)
#define WGMMA_OUTS_72 WGMMA_OUTS_64, WGMMA_OUTS_4(32)
#define WGMMA_OUTS_80 WGMMA_OUTS_72, WGMMA_OUTS_4(36)
#define WGMMA_OUTS_88 WGMMA_OUTS_80, WGMMA_OUTS_4(40)
#define WGMMA_OUTS_96 WGMMA_OUTS_88, WGMMA_OUTS_4(44)
#define WGMMA_OUTS_104 WGMMA_OUTS_96, WGMMA_OUTS_4(48)
#define WGMMA_OUTS_112 WGMMA_OUTS_104, WGMMA_OUTS_4(52)
#define WGMMA_OUTS_120 WGMMA_OUTS_112, WGMMA_OUTS_4(56)
#define WGMMA_OUTS_128 WGMMA_OUTS_120, WGMMA_OUTS_4(60)
#define WGMMA_OUTS_136 WGMMA_OUTS_128, WGMMA_OUTS_4(64)
#define WGMMA_OUTS_144 WGMMA_OUTS_136, WGMMA_OUTS_4(68)
#define WGMMA_OUTS_152 WGMMA_OUTS_144, WGMMA_OUTS_4(72)
#define WGMMA_OUTS_160 WGMMA_OUTS_152, WGMMA_OUTS_4(76)
#define WGMMA_OUTS_168 WGMMA_OUTS_160, WGMMA_OUTS_4(80)
#define WGMMA_OUTS_176 WGMMA_OUTS_168, WGMMA_OUTS_4(84)
#define WGMMA_OUTS_184 WGMMA_OUTS_176, WGMMA_OUTS_4(88)
#define WGMMA_OUTS_192 WGMMA_OUTS_184, WGMMA_OUTS_4(92)
#define WGMMA_OUTS_200 WGMMA_OUTS_192, WGMMA_OUTS_4(96)
#define WGMMA_OUTS_208 WGMMA_OUTS_200, WGMMA_OUTS_4(100)
#define WGMMA_OUTS_216 WGMMA_OUTS_208, WGMMA_OUTS_4(104)
#define WGMMA_OUTS_224 WGMMA_OUTS_216, WGMMA_OUTS_4(108)
#define WGMMA_OUTS_232 WGMMA_OUTS_224, WGMMA_OUTS_4(112)
#define WGMMA_OUTS_240 WGMMA_OUTS_232, WGMMA_OUTS_4(116)
#define WGMMA_OUTS_248 WGMMA_OUTS_240, WGMMA_OUTS_4(120)
#define WGMMA_OUTS_256 WGMMA_OUTS_248, WGMMA_OUTS_4(124)

WGMMA_SHAPE(8, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
WGMMA_SHAPE(16, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
WGMMA_SHAPE(24, "%12", "%13", "%14", "%15", "%16", "%17", "%18")
WGMMA_SHAPE(32, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
WGMMA_SHAPE(40, "%20", "%21", "%22", "%23", "%24", "%25", "%26")
WGMMA_SHAPE(48, "%24", "%25", "%26", "%27", "%28", "%29", "%30")
WGMMA_SHAPE(56, "%28", "%29", "%30", "%31", "%32", "%33", "%34")
WGMMA_SHAPE(64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
WGMMA_SHAPE(72, "%36", "%37", "%38", "%39", "%40", "%41", "%42")
WGMMA_SHAPE(80, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
WGMMA_SHAPE(88, "%44", "%45", "%46", "%47", "%48", "%49", "%50")
WGMMA_SHAPE(96, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
WGMMA_SHAPE(104, "%52", "%53", "%54", "%55", "%56", "%57", "%58")
WGMMA_SHAPE(112, "%56", "%57", "%58", "%59", "%60", "%61", "%62")
WGMMA_SHAPE(120, "%60", "%61", "%62", "%63", "%64", "%65", "%66")
WGMMA_SHAPE(128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
WGMMA_SHAPE(136, "%68", "%69", "%70", "%71", "%72", "%73", "%74")
WGMMA_SHAPE(144, "%72", "%73", "%74", "%75", "%76", "%77", "%78")
WGMMA_SHAPE(152, "%76", "%77", "%78", "%79", "%80", "%81", "%82")
WGMMA_SHAPE(160, "%80", "%81", "%82", "%83", "%84", "%85", "%86")
WGMMA_SHAPE(168, "%84", "%85", "%86", "%87", "%88", "%89", "%90")
WGMMA_SHAPE(176, "%88", "%89", "%90", "%91", "%92", "%93", "%94")
WGMMA_SHAPE(184, "%92", "%93", "%94", "%95", "%96", "%97", "%98")
WGMMA_SHAPE(192, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
WGMMA_SHAPE(200, "%100", "%101", "%102", "%103", "%104", "%105", "%106")
WGMMA_SHAPE(208, "%104", "%105", "%106", "%107", "%108", "%109", "%110")
WGMMA_SHAPE(216, "%108", "%109", "%110", "%111", "%112", "%113", "%114")
WGMMA_SHAPE(224, "%112", "%113", "%114", "%115", "%116", "%117", "%118")
WGMMA_SHAPE(232, "%116", "%117", "%118", "%119", "%120", "%121", "%122")
WGMMA_SHAPE(240, "%120", "%121", "%122", "%123", "%124", "%125", "%126")
WGMMA_SHAPE(248, "%124", "%125", "%126", "%127", "%128", "%129", "%130")
WGMMA_SHAPE(256, "%128", "%129", "%130", "%131", "%132", "%133", "%134")
