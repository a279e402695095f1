"""RTL models of the rack: SystemVerilog and its loader arrive with their own change."""
