"""Export of students to the formats of other runtimes, in fp32, fp16 or int8."""
