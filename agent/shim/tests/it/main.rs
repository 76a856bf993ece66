mod frames;
mod served;
